"""Where samples come from: raw formats, and the canonical source they are prepared into."""
