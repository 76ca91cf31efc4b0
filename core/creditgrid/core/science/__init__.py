"""The protocols: networks, training, estimators, credits, local updates and measurements. Imports torch."""
