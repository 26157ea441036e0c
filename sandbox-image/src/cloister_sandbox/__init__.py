"""The exec server: runs tools inside a sandbox pod."""
