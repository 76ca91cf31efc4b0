"""Predictions: what calls will take, from their work, from what others took, and from how fast the machine is."""
