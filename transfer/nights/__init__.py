"""The nightly job: check new data, train a challenger, and promote it if it proves better than the champion."""
