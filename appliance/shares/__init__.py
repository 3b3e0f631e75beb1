"""Shares: what of the tree is shown to whom over SMB and NFS, and the files that tell Samba and NFS servers so."""
