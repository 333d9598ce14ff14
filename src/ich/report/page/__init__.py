"""The report page: its blocks and figures, and the HTML file of them."""
