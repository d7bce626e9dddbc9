"""GenEval: its rules, and its evaluator for folders of images."""
