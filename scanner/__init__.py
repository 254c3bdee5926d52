"""The service: crawls hubs, scans checkpoints on Ray, keeps what it finds."""
