"""What people read: the terminal's summary and progress line."""
