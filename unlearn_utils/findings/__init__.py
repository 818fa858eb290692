"""What the results say: tables of a notebook, figures, and a verdict for each claim.

In go the measurements that `study` stored (one row a document) and the settings of a profile. They
become draws, one a resample of the documents, of each replicate; out come tidy tables with a value,
its 95% interval, its n and its rerun interval in each row, figures, and the claims' table. May
import `study` and everything below it; nothing imports it but the command line.
"""
