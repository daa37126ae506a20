"""What is true of data and settings: parameters, records and errors."""
