"""Every night: what is new is checked, a challenger is trained, and it replaces the champion if it proves better."""
