module github.com/deliverykit/delivery/test

go 1.26.0

replace github.com/deliverykit/delivery => ../

require (
	github.com/deliverykit/delivery v0.0.0-00010101000000-000000000000
	github.com/standard-webhooks/standard-webhooks/libraries v0.0.1
)

require (
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
)
