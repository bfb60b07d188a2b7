"""What the world hears of an attempt."""
