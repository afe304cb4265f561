"""The per-device cache file: bytes, keys, rows. It knows nothing of what a kernel means."""
