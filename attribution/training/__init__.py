"""How a model is trained, and the run that training leaves."""
