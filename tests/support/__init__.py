"""What tests share: free ports, a broker, waiting for things to happen."""
