"""Problems, prompts and the stream that feeds the loop. Importing this package imports nothing heavy."""
