//! Int8 micro-kernels per CPU tier and the executor of compiled programs.
