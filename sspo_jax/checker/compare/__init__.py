"""The rules by which two trees are the same answer."""
