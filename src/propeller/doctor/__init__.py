"""What is wrong with a stack, and how to fix it: the guide's troubleshooting, asked of the running services."""
