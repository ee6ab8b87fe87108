module github.com/deliverykit/delivery/test

go 1.26.0

replace github.com/deliverykit/delivery => ../
