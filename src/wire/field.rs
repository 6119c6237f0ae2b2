//! Protobuf fields: tags, varints, lengths, and skipping what is not understood.
