//! Every metric name, declared once.
