//! The model bundle: manifest, files, golden vectors; packing and unpacking.
