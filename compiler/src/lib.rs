//! Takes int8 regions off ONNX graphs and compiles them to kernel programs.
