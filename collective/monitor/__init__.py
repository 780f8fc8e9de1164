"""What ranks tell the process that supervises their job (``collective run``), and it them."""
