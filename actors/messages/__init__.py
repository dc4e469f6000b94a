"""What actors say to each other: attrs classes grouped by receiver, no behaviour beyond derived values."""
