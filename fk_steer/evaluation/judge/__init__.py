"""How well rewards agree with human judgements."""
