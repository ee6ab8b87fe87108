// Package cloud is what the drivers of object stores over HTTP share: memory for parts, bodies that can be sealed, foreign
// text that is safe to keep, and the check of an endpoint. It is for those drivers only, and imports no SDK.
package cloud
