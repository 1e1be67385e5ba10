"""Recipe tuning by a protocol, and tables of requested against reached L0 for every architecture."""
