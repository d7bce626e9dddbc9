"""Published lists of prompts, those that ship with the package and those that are read from a copy."""
