"""Label rows in files: Parquet and tar."""
