"""What users run to find out how good images, rewards and settings are.

- `generation`: images for a list of prompts, by any number of processes
- `geneval`: GenEval's rules and evaluator
- `panel`: mean scores of images by several rewards, and diversity
- `judge`: agreement of rewards with human judgements
- `comparison`: rewards as guides, side by side
- `world`: settings side by side on the bundled world
"""
