"""What the results say: tables of a notebook, figures, and a verdict for each claim.

In go the measurements that `study` stored (one row a document) and the settings of a profile; out
come tidy tables with a value, its 95% interval and its n in each row, figures, and the claims'
table. May import `study` and everything below it; nothing imports it but the command line.
"""
