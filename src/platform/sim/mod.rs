//! A node in memory. (under construction)
