"""The command lines: one module a command, and what they share. Nothing in the package imports from here."""
