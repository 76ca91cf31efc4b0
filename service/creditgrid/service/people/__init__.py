"""Who uses the service, what they may do, and what they did."""
