"""How each family of frameworks trains, calls and differentiates a model; one family a file."""
