package webhook

// MaxWhole is the size up to which a body can be signed with v1a.
const MaxWhole = maxWhole
