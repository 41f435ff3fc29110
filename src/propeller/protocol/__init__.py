"""What is said on the wire: messages, topics, identifiers. No I/O."""
