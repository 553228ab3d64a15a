core.register_action("slow", { "http-req" }, function(txn) core.msleep(600) end)
