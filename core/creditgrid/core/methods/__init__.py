"""The credit methods that ship, each in one file, as a researcher would write one."""
