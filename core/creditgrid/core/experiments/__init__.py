"""The experiments that ship with CreditGrid, one file each."""
