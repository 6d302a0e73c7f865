//! The Linux backend. (under construction)
