"""What every command shares: its errors as one line, compiled programs on disk, memory."""
