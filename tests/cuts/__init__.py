"""Power cuts: a disk that remembers each write and each flush, and what must be there wherever that ends."""
