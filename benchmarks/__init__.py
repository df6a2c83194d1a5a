"""What the project's figures come from; each module prints its own."""
