"""The measurements that ship, each in one file."""
