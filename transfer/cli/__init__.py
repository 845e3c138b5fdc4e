"""The command `transfer`: arguments, printing, exit codes."""
