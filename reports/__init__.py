"""Shows what a cache file holds, in the terminal, as JSON and as one HTML page.

``data.collect`` reads a file into a ``model.Report``; ``terminal.render`` and ``html.write_html``
show it. No device is touched, so that the file of an absent one can be read anywhere.
"""
