// Package azure runs the azure handler against a real server of the Azure Blob protocol, Azurite of
// npm, which needs Node.js. It has tests only.
package azure
