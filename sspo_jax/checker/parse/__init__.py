"""An answer as a tree: normalising, tokens, grammar, units, words."""
