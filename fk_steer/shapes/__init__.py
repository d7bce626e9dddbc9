"""A synthetic world of coloured shapes with small trained models: everything can be checked, nothing has to be
downloaded."""
